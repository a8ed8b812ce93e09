"""What all that speaks to Amazon's services has in common: clients, credentials, rights, and what its errors mean."""

from flowkit.aws.client import AwsOptions, open_client
from flowkit.aws.failures import Blame, blame_of, blame_of_code, code_of, failures, let_go, told
from flowkit.aws.patience import Backoff, patiently
from flowkit.aws.rights import ACCOUNT, REGION, Condition, Right, arn, bucket_arn, key_right, literal, policy_of, via
from flowkit.aws.s3 import MISSING, REFUSED, S3Place, Use, checksum
from flowkit.aws.shared import hash_of, need_pyarrow

__all__ = [
    "ACCOUNT",
    "MISSING",
    "REFUSED",
    "REGION",
    "AwsOptions",
    "Backoff",
    "Blame",
    "Condition",
    "Right",
    "S3Place",
    "Use",
    "arn",
    "blame_of",
    "blame_of_code",
    "bucket_arn",
    "checksum",
    "code_of",
    "failures",
    "hash_of",
    "key_right",
    "let_go",
    "literal",
    "need_pyarrow",
    "open_client",
    "patiently",
    "policy_of",
    "told",
    "via",
]
