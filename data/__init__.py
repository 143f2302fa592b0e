"""Recordings in, batches out: episodes, dataset cards, readers, shards, resident tables and index sampling."""
