"""A Llama of random weights with a byte-level tokenizer, 1 MB: `python tiny.py FOLDER`, where transformers is installed.

It has no end token: an answer is as long as it may be."""

from __future__ import annotations

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def main(folder: str) -> None:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator([TEMPLATE], trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)

    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    positions = {"max_position_embeddings": 131072, "bos_token_id": None, "eos_token_id": None}
    config = LlamaConfig(vocab_size=512, num_key_value_heads=2, **shape, **positions)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config.bos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
