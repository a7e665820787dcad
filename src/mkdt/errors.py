"""The one exception that stands for a mistake of the user, not of the program, and what no message may show."""

import re

SECRETS = "password|passwd|pwd|token|secret|key|credential|signature|auth"


class UserError(Exception):
    """One sentence that names the key, file or value at fault, what was expected and what to do.

    Everything that prints it prints the sentence alone; a traceback is for bugs.
    """

    def __init__(self, sentence: str) -> None:
        """A sentence stays on one line, whatever it quotes, and holds no password and no colours of a terminal."""
        plain = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~])?", "", sentence)
        super().__init__(redact(" ".join(plain.splitlines())))


def redact(text: str) -> str:
    """``text`` without the passwords of URIs, of query strings and of HTTP headers in it."""
    text = re.sub(r"(\w://)[^\s'\"]*@", r"\1***@", text)
    text = re.sub(r"(\w://[^\s/:@'\"]+:)[^\n'\"]*@", r"\1***@", text)  # a password with a space in it
    text = re.sub(rf"(?i)((?:^|[?&;\s])[\w-]*(?:{SECRETS})=)[^&\s'\"]+", r"\1***", text)
    return re.sub(r"(?i)(authorization\W{1,4}(?:(?:bearer|basic|token)\s+)?)[^\s'\",]+", r"\1***", text)
