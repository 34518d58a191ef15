"""What a run will take: parameters, operations, bytes and hours, each with its arithmetic shown."""
