"""Lowered graphs in eval mode as programs: kernel calls on memory that is planned ahead."""
