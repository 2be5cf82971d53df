"""The transforms that Eidetic's pipelines are made of, and the lake that they read and write."""
