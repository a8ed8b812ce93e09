"""What all that speaks to Amazon's services has in common: clients, credentials, rights, and what its errors mean."""

from flowkit.aws.client import AwsOptions, open_client
from flowkit.aws.failures import Blame, blame_of, blame_of_code, code_of, failures, told
from flowkit.aws.patience import patiently
from flowkit.aws.rights import (
    ACCOUNT,
    INLINE,
    MANAGED,
    REGION,
    Condition,
    Right,
    Statement,
    arn,
    bucket_arn,
    key_right,
    literal,
    msk_arn,
    partition_of,
    policy_of,
    size_of,
    statements_of,
    via,
)
from flowkit.aws.s3 import MISSING, REFUSED, S3Place, Use, checksum
from flowkit.aws.shared import hash_of, need_pyarrow

__all__ = [
    "ACCOUNT",
    "INLINE",
    "MANAGED",
    "MISSING",
    "REFUSED",
    "REGION",
    "AwsOptions",
    "Blame",
    "Condition",
    "Right",
    "S3Place",
    "Statement",
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
    "msk_arn",
    "need_pyarrow",
    "open_client",
    "partition_of",
    "patiently",
    "policy_of",
    "size_of",
    "statements_of",
    "told",
    "via",
]
