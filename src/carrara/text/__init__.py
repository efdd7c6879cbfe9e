"""Text encoders: prompts become a Condition. One trained here, pretrained ones, class labels, or nothing at all."""

from carrara.nn.whitening import Whitening
from carrara.text.absent import Absent
from carrara.text.base import Cut, Reading, TextEncoder
from carrara.text.contrastive import ContrastiveText, contrastive_loss
from carrara.text.convention import Convention
from carrara.text.emphasis import Weighted, emphasise, parse_emphasis
from carrara.text.joined import Joined
from carrara.text.labels import Labels
from carrara.text.pretrained import PretrainedText
from carrara.text.tokenizer import PromptTokenizer, train_tokenizer
from carrara.text.unconditional import Unconditional
from carrara.text.words import Unknown, known_words, words

__all__ = [
    "Absent",
    "ContrastiveText",
    "Convention",
    "Cut",
    "Joined",
    "Labels",
    "PretrainedText",
    "PromptTokenizer",
    "Reading",
    "TextEncoder",
    "Unconditional",
    "Unknown",
    "Weighted",
    "Whitening",
    "contrastive_loss",
    "emphasise",
    "known_words",
    "parse_emphasis",
    "train_tokenizer",
    "words",
]
