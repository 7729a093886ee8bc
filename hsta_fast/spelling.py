"""What somebody may have meant by a word that is not known."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message, such as "; did you mean train?"; empty if nothing known is close."""
    by_lower_case = {name.lower(): name for name in known}
    closest = get_close_matches(word.lower(), by_lower_case, n=1)
    return f"; did you mean {by_lower_case[closest[0]]}?" if closest else ""
