"""What all that speaks to Amazon's services has in common: clients, credentials, and what its errors mean."""

from flowkit.aws.client import AwsOptions, open_client
from flowkit.aws.failures import Blame, blame_of, code_of, failures, told

__all__ = ["AwsOptions", "Blame", "blame_of", "code_of", "failures", "open_client", "told"]
