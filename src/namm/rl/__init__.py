"""Control: a Decision Transformer that acts under a memory, and the offline data it learns from (`namm[rl]`)."""
