"""What becomes of a dead letter that its own destination never takes, as one that is too large, or of too long ago.

It is sent once more, of now, and if it is large without what makes it so. A second refusal is told in the log, no more:
each letter would give another one, for ever.
"""

import msgspec

from flowkit.record import DeadLetter
from flowkit.sink import Rejected

SMALL = 16 << 10
"""No service refuses a letter of so many bytes for its size."""
REASON_CHARACTERS = 2_000
AGAIN = "the letter itself was refused"


def letter_again(refused: Rejected, now: int) -> DeadLetter | None:
    """What to send in place of a letter that was refused; None if it was sent again already."""
    data = refused.value or b""
    try:
        letter = msgspec.json.decode(data, type=DeadLetter)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if AGAIN in letter.reason:
        return None
    told = f"{AGAIN}: {refused.error} ({refused.reason})"
    if len(data) > SMALL:
        letter.reason = letter.reason[:REASON_CHARACTERS]
        told += f"; left out are its value ({len(letter.value or b'')} bytes), key and traceback"
        letter.value, letter.key, letter.traceback = None, None, ""
    letter.reason, letter.time = f"{letter.reason}; {told[:REASON_CHARACTERS]}", now
    return letter
