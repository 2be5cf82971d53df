"""The audit on engines that are installed here: Prism, and real clusters of Flink and Spark."""
