"""Writes a GGUF model as a directory that vLLM reads: F32 safetensors, tokenizer and chat template.

usage: gguf_to_hf.py MODEL.gguf DIRECTORY
"""

import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

gguf, directory = Path(sys.argv[1]), sys.argv[2]
source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
# What was read counts as quantised and cannot be saved, though its weights are F32 by now: a plain model takes them over.
read = AutoModelForCausalLM.from_pretrained(**source)
del read.config.quantization_config
plain = type(read)(read.config)
plain.load_state_dict(read.state_dict())
plain.save_pretrained(directory)
