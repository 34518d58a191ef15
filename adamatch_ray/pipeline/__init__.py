"""What an offline stage does with one shard: inputs in, a shard of the stage out."""
