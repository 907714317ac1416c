"""What is meant where nothing is said."""

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_MEMORY = "builtin:universal"
