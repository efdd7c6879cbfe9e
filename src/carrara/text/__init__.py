"""Text encoders: prompts become a Condition. One trained here, pretrained ones, class labels, or nothing at all."""

from carrara.nn.whitening import Whitening
from carrara.text.base import Cut, TextEncoder
from carrara.text.contrastive import ContrastiveText, contrastive_loss
from carrara.text.labels import Labels
from carrara.text.pretrained import PretrainedText
from carrara.text.tokenizer import PromptTokenizer, train_tokenizer
from carrara.text.unconditional import Unconditional
from carrara.text.words import Unknown, known_words, words

__all__ = [
    "ContrastiveText",
    "Cut",
    "Labels",
    "PretrainedText",
    "PromptTokenizer",
    "TextEncoder",
    "Unconditional",
    "Unknown",
    "Whitening",
    "contrastive_loss",
    "known_words",
    "train_tokenizer",
    "words",
]
