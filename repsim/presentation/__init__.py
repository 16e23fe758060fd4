"""Choices that figures and the report page share: colour scales, stages of networks, and labels of measures."""
