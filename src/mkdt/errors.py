"""The one exception that stands for a mistake of the user, not of the program."""


class UserError(Exception):
    """One sentence that names the key, file or value at fault, what was expected and what to do.

    Everything that prints it prints the sentence alone; a traceback is for bugs.
    """

    def __init__(self, sentence: str) -> None:
        """A sentence stays on one line, whatever names it quotes."""
        super().__init__(" ".join(sentence.splitlines()))
