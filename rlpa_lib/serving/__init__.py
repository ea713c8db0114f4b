"""vLLM servers: setting one up, starting it, and sampling from several of them with the trainer's adapter; SmolLM2 as a model folder."""
