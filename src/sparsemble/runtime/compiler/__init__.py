"""From a network to an execution plan: graph, fused operations, memory layout, kernel configurations."""
