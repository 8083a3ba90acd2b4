"""Fine-tune a language model on your own data, and ship it knowing that what you serve is what you trained."""

__version__ = "0.1.0"
