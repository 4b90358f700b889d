"""Models without weights to download: the shapes of real ones, and random models of those shapes."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, Qwen2Config

from workbench.corpora.microworld import MicroWorld
from workbench.models import MODEL_SIZES, build_model, build_tokenizer, trained_parameters

# Qwen2.5's: hidden size, layers, heads, key/value heads, feed-forward size, vocabulary, tied
_QWEN = {
    "0.5B": (896, 24, 14, 2, 4864, 151_936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151_936, True),
    "7B": (3584, 28, 28, 4, 18_944, 152_064, False),
}
_NAMES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)
SIZES = (*MODEL_SIZES, "GPT-2", *_QWEN)  # micro to 124M are Llamas of this project


def parameter_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters, by name; tied ones appear once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_configuration(size))
    return {name: tuple(p.shape) for name, p in trained_parameters(model).items()}


def random_model(size: str, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A model of that size, in training mode, and the word tokenizer of the micro-world."""
    if size in MODEL_SIZES:
        model, tokenizer = build_model(MicroWorld(), size)
        return torch.nn.Module.to(model, device, dtype).train(), tokenizer
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(_configuration(size), dtype=dtype)
    return model.train(), build_tokenizer(MicroWorld())


def _configuration(size: str) -> PretrainedConfig:
    shape: dict[str, Any]
    if size == "GPT-2":
        return GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    if size in _QWEN:
        shape = dict(zip(_NAMES, _QWEN[size], strict=True))
        return Qwen2Config(**shape)
    shape = {"vocab_size": len(build_tokenizer(MicroWorld())), "tie_word_embeddings": True, **MODEL_SIZES[size]}
    return LlamaConfig(**shape)
