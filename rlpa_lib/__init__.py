"""RLPA replicated as notebooks over a thin library: dynamic user profiles, inferred turn by turn and trained by PPO."""
