"""A merged adapter in other forms: a GGUF file for llama.cpp, or the base with the adapter in its weights."""
