"""glm_dist: pretraining, fine-tuning and serving of GLM language models on Ray."""

__version__ = "0.1.0"
