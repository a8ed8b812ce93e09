"""What all that speaks to Amazon's services has in common: clients, credentials, and what its errors mean."""

from flowkit.aws.client import AwsOptions, open_client
from flowkit.aws.failures import Blame, blame_of, blame_of_code, code_of, failures, told
from flowkit.aws.patience import patiently
from flowkit.aws.s3 import MISSING, REFUSED, S3Place, checksum

__all__ = [
    "MISSING",
    "REFUSED",
    "AwsOptions",
    "Blame",
    "S3Place",
    "blame_of",
    "blame_of_code",
    "checksum",
    "code_of",
    "failures",
    "open_client",
    "patiently",
    "told",
]
