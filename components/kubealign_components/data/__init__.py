"""The data contract: row kinds, Parquet datasets with manifests, fingerprints and chunks."""
