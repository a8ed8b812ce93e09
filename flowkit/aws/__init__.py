"""What all that speaks to Amazon's services has in common: clients, credentials, rights, and what its errors mean."""

from flowkit.aws.client import AwsOptions, open_client
from flowkit.aws.failures import Blame, blame_of, code_of, failures, told
from flowkit.aws.rights import ACCOUNT, REGION, Condition, Right, arn, bucket_arn, key_right, literal, policy_of, via

__all__ = [
    "ACCOUNT",
    "REGION",
    "AwsOptions",
    "Blame",
    "Condition",
    "Right",
    "arn",
    "blame_of",
    "bucket_arn",
    "code_of",
    "failures",
    "key_right",
    "literal",
    "open_client",
    "policy_of",
    "told",
    "via",
]
