"""What the launcher of the Dataflow Flex Template runs: it takes a file, and Eidetic is a package."""

from pipelines.flex_template import script

if __name__ == "__main__":
    script()
