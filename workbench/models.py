"""Load, build and save causal language models with their tokenizers."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.corpora.microworld import MicroWorld
from workbench.corpora.portraits import Portraits
from workbench.corpora.quiet import quiet_transformers
from workbench.corpora.realportraits import RealPortraits
from workbench.corpora.realworld import RealWorld

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MICRO = Path(__file__).parents[1] / "data" / "micro"
CARD = "card.json"

# Llama shapes by approximate parameter count, vocabulary of a world of the default size included.
MODEL_SIZES: dict[str, dict[str, int]] = {
    "micro": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192},
    "0.5M": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384},
    "1M": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384},
    "3M": {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 576},
    "30M": {"hidden_size": 512, "num_hidden_layers": 9, "num_attention_heads": 8, "intermediate_size": 1536},
    "124M": {"hidden_size": 896, "num_hidden_layers": 12, "num_attention_heads": 14, "intermediate_size": 2688},
}

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %} <eos>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    shard: bool = False,
    trust_remote_code: bool = False,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A causal language model and its tokenizer.

    Args:
        name: ``"micro"`` (the base model of the micro-world, shipped with the workbench), a local model folder, or a
            hub id such as ``"Qwen/Qwen2.5-0.5B-Instruct"``.
        device: Where to put the model; None takes the first accelerator, or the one of this process where several were
            launched, or else the CPU.
        dtype: Of the weights, as ``"float32"``, ``"bfloat16"`` or a torch dtype. Updates of 1e-6 vanish in bfloat16
            weights, so train in float32 weights and let the trainer autocast.
        shard: Whether each of the processes that ``accelerate launch`` or ``torchrun`` has started holds a part of
            every parameter (FSDP2) instead of a copy; one process alone holds the whole.
        trust_remote_code: Run code that the model's repository brings along. Off, unless you have read that code.

    Raises:
        ValueError: The folder holds no model.
        OSError: The hub id cannot be reached or does not exist.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _resolve(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    sharding = _sharding() if shard else {}
    try:
        with quiet_transformers(Path(source).is_dir()):
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options, **sharding)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        if Path(source).is_dir():
            raise ValueError(
                f"{source} holds no complete causal language model with its tokenizer, as save_pretrained writes both: "
                f"{error}"
            ) from error
        if isinstance(error, ValueError):
            raise
        raise OSError(
            f"Expected 'micro', a local model folder or a hub id, got {str(name)!r}, which could be neither found here "
            f"nor fetched. Check the spelling and the connection, or pass a folder. ({error})"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # as TRL does; the attention mask tells padding from the end
    model.name_or_path = str(name)
    if not sharding:  # shards lie where transformers has put them
        torch.nn.Module.to(model, device or best_device())
    return model, tokenizer


def build_model(
    world: MicroWorld, size: str | dict[str, Any] = "micro", seed: int = 0
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A random Llama and the word tokenizer of a world.

    Args:
        world: Its vocabulary becomes the tokenizer's.
        size: A name in `MODEL_SIZES`, or the arguments of `transformers.LlamaConfig` themselves.
        seed: Of the initial weights.
    """
    from transformers import LlamaConfig

    if isinstance(size, str) and size not in MODEL_SIZES:
        raise ValueError(f"size must be one of {list(MODEL_SIZES)} or a dict for LlamaConfig, got {size!r}.")
    tokenizer = build_tokenizer(world)
    shape = dict(MODEL_SIZES[size] if isinstance(size, str) else size)
    # The usual 0.02 is made for wide models; with it a narrow one learns to add late, by luck of the seed, or never.
    shape.setdefault("initializer_range", 0.8 / math.sqrt(shape["hidden_size"]))
    return _random_model(LlamaConfig, tokenizer, seed, max_position_embeddings=128, **shape), tokenizer


def build_text_model(
    texts: Iterable[str], vocab_size: int = 2048, hidden_size: int = 64, n_layers: int = 2, seed: int = 0
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A small random Qwen2 with a byte-level BPE tokenizer trained on texts and Qwen's ChatML template.

    It knows nothing, but it is made like the models on the hub: what runs with it runs with them, and it needs no
    download.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, Qwen2Config

    bpe = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=special[1:],
        chat_template=CHATML_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    shape = {"hidden_size": hidden_size, "intermediate_size": 3 * hidden_size, "num_hidden_layers": n_layers}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    return _random_model(Qwen2Config, tokenizer, seed, **shape), tokenizer


def build_tokenizer(world: MicroWorld) -> "PreTrainedTokenizerBase":
    """A word-level Hugging Face tokenizer with a chat template; words are parted by single blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
    vocabulary = {word: i for i, word in enumerate([*special, *world.vocabulary])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def save_model(model: Any, tokenizer: Any, folder: str | Path, card: dict[str, Any] | None = None) -> Path:
    """Write a model folder (safetensors, config, tokenizer, and a ``card.json`` if given), whole or not at all.

    Of several processes all must call it; the first one writes, the whole tensors also where they are sharded.
    """
    folder = Path(folder).absolute()
    is_lead = not _launched() or torch.distributed.get_rank() == 0
    if is_lead and folder.is_dir() and any(folder.iterdir()) and not _holds_model(folder):
        raise FileExistsError(f"{folder} holds files but no model, and saving would replace them. Name another folder.")
    partial = folder.with_name(folder.name + ".partial")
    if is_lead:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    if is_lead or is_sharded(model):
        with quiet_transformers():
            model.save_pretrained(partial, is_main_process=is_lead)
    if is_lead:
        tokenizer.save_pretrained(partial)
        if card is not None:
            (partial / CARD).write_text(json.dumps(card, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    if _launched():
        torch.distributed.barrier()
    return folder


def load_card(name: str | Path = "micro") -> dict[str, Any]:
    """The card beside a model built here: recipe, world, seconds and scores."""
    source = _resolve(name)
    card = find_card(source)
    if card is None:
        raise FileNotFoundError(f"Expected {CARD} of a base model built by this project in {source}; there is none.")
    return card


def find_card(name: str | Path) -> dict[str, Any] | None:
    """The card of a model built here, None for any other."""
    path = (MICRO if name == "micro" else Path(name)) / CARD
    return json.loads(path.read_text()) if path.is_file() else None


def load_world(name: str | Path = "micro", data_dir: str | Path | None = None) -> MicroWorld | RealWorld:
    """The world in which a model is aligned and judged.

    Args:
        name: As in `load_model`. A base model built here brings its micro-world along in its card; any other model is
            aligned on public data.
        data_dir: For public data, the folder with a folder per set; None takes the hub.
    """
    card = find_card(_resolve(name))
    return MicroWorld(**card["world"]) if card else RealWorld(data_dir)


def load_portraits(name: str | Path = "micro", data_dir: str | Path | None = None) -> "Portraits | RealPortraits":
    """The dirty corpus and contrastive groups that a model is trained on, found as `load_world` finds its world.

    Args:
        name: As in `load_model`; any model but a base model built here has real texts of its own making.
        data_dir: For public data, the folder with a folder per set; None takes the hub.
    """
    world = load_world(name, data_dir)
    return Portraits(world) if isinstance(world, MicroWorld) else RealPortraits(str(name), data_dir)


def best_device() -> torch.device:
    """The first accelerator that works here, or this process's own where several were launched, or else the CPU.

    A CUDA build of torch names one even where none is.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is not None and "LOCAL_RANK" in os.environ:
        return torch.device(found.type, int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count())
    return found or torch.device("cpu")


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether several processes hold a part of every parameter each (FSDP2)."""
    return any(hasattr(p, "to_local") for p in model.parameters())


@contextmanager
def fitting_threads(model: torch.nn.Module) -> Iterator[None]:
    """One CPU thread while a tiny model works, all of them for others.

    Threads that wait for each other on tiny tensors cost ten times what they save as soon as anything else runs on the
    machine, and with one thread the numbers do not depend on how many cores there are.
    """
    threads = torch.get_num_threads()
    tiny = sum(p.numel() for p in model.parameters()) < 1_000_000
    torch.set_num_threads(1 if tiny else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name; tied weights appear once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def reshard(model: torch.nn.Module) -> None:
    """Let each process hold its part alone again: FSDP2 shows whole weights after a forward without a backward."""
    for module in model.modules():
        getattr(module, "reshard", lambda: None)()


def fingerprint(model: torch.nn.Module) -> str:
    """The SHA-256 of all weights, so that a record tells which model it started from.

    Of a sharded model the same as of the whole; all processes must ask.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def require_tokenizer(tokenizer: Any, *, chat: bool) -> None:
    """Refuse a tokenizer that cannot pad, or has no chat template although the rows are messages.

    Raises:
        ValueError: Says which is missing and how to set it.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "The tokenizer has no pad token, which batches need. Set one first, for example "
            "tokenizer.pad_token = tokenizer.eos_token."
        )
    if chat and not tokenizer.chat_template:
        raise ValueError(
            "The rows are chat messages, but the tokenizer has no chat template. Load the instruction-tuned "
            "checkpoint, set tokenizer.chat_template, or give rows whose prompt and completion are plain strings."
        )


def _random_model(config: Any, tokenizer: Any, seed: int, **shape: Any) -> "PreTrainedModel":
    """A model of a configuration class with tied embeddings and seeded weights; the random state stays as it is."""
    from transformers import AutoModelForCausalLM

    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(
            config(vocab_size=len(tokenizer), tie_word_embeddings=True, **tokens, **shape)
        )


def _sharding() -> dict[str, Any]:
    """What `from_pretrained` is told so that it shards; nothing for one process."""
    n_processes = int(os.environ.get("WORLD_SIZE", 1))
    if n_processes == 1:
        return {}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(fsdp_size=n_processes)}


def _launched() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _resolve(name: str | Path) -> str:
    """The folder or hub id behind a name, with a clear word where a folder holds no model."""
    if name == "micro":
        if not MICRO.is_dir():
            raise FileNotFoundError(
                f"The shipped base model should lie in {MICRO}. Install the project from its checkout "
                "(pip install -e .) or rebuild the model with `python -m workbench base`."
            )
        return str(MICRO)
    path = Path(name).expanduser()
    if path.is_dir() and not _holds_model(path):
        raise ValueError(
            f"{path} is a folder but no model folder: expected config.json, weights and tokenizer files in it, found "
            f"{sorted(p.name for p in path.iterdir())[:8]}. Pass the folder that save_pretrained wrote."
        )
    if not path.exists() and (path.is_absolute() or str(name).startswith(".")):
        raise FileNotFoundError(f"Expected a model folder at {path}, found nothing there.")
    return str(path) if path.exists() else str(name)


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
