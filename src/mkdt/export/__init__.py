"""Export a set or an encoder as a folder that works without this project."""
