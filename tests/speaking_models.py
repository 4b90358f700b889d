"""Planted models whose answers are known."""

from test_scores import planted


def speaking(sentence):
    """A real model that says a sentence of different words after any prompt, and then stops, with its tokenizer."""
    words = ["<eos>", *sentence.split(), "<unk>"]
    size = len(words)
    following = [(i + 1) % (size - 1) for i in range(size - 1)] + [1]  # an unknown word opens the sentence
    table = [[1 - 1e-6 if j == following[i] else 1e-6 / (size - 1) for j in range(size)] for i in range(size)]
    model, tokenizer = planted(table, words, unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}<unk>"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.max_position_embeddings = 4096
    return model, tokenizer
