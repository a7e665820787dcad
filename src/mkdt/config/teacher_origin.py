"""Where the targets come from."""

from mkdt.config.sections import Config


def teacher_origin(config: Config) -> str:
    """Return where the targets come from: a teacher that is ``trained``, a ``checkpoint``, or a ``file`` of targets."""
    checkpoint = config["teacher"]["checkpoint"]
    if config["targets"]["file"] is not None:
        return "file"
    return "checkpoint" if checkpoint["file"] is not None or checkpoint["model"] is not None else "trained"
