# SPDX-License-Identifier: MIT
"""The flow matrix and policies as data, and pure functions over them: evaluate, lint, render. Imports nothing of ours."""
