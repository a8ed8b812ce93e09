"""What all that speaks to Amazon's services has in common: clients, credentials, rights, and what its errors mean."""

from flowkit.aws.client import AwsOptions, open_client, session
from flowkit.aws.failures import EXPIRED, SUSPECT, Blame, blame_of, blame_of_code, code_of, failures, status_of, told
from flowkit.aws.patience import patiently
from flowkit.aws.rights import ACCOUNT, REGION, Condition, Right, arn, bucket_arn, key_right, literal, policy_of, via
from flowkit.aws.s3 import MISSING, REFUSED, S3Place, Use, checksum
from flowkit.aws.shared import hash_of, need_pyarrow

__all__ = [
    "ACCOUNT",
    "EXPIRED",
    "MISSING",
    "REFUSED",
    "REGION",
    "SUSPECT",
    "AwsOptions",
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
    "literal",
    "need_pyarrow",
    "open_client",
    "patiently",
    "policy_of",
    "session",
    "status_of",
    "told",
    "via",
]
