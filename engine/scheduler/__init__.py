# SPDX-License-Identifier: MIT
"""The resource scheduler: which proxy and which repository serve which task. Pure functions; the Backup Service keeps the books.

Nouns: a *task* is one VM disk; a *resource* is a proxy or a repository with a limit of concurrent tasks; a *plan* is the
assignment of a job's tasks and the slots that the job may use at the same time; a *replacement* is another proxy for tasks
whose own was lost.
"""

from engine.scheduler.plan import Assignment, NoResource, Plan, Replacement, Resource, Task, plan, replace

__all__ = ["Assignment", "NoResource", "Plan", "Replacement", "Resource", "Task", "plan", "replace"]
