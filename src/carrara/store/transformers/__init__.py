"""Text encoders in the layout of the transformers library: config.json, model.safetensors, tokenizer.json.

Only the files are read; nothing is fetched, and the library itself is not needed.
"""

from carrara.store.transformers.places import find_folder
from carrara.store.transformers.source import PretrainedSource, pretrained_source
from carrara.store.transformers.text import read_text

__all__ = ["PretrainedSource", "find_folder", "pretrained_source", "read_text"]
