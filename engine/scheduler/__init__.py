# SPDX-License-Identifier: MIT
"""The resource scheduler: which proxy and which repository serve which task. A pure function; the Backup Service keeps the books.

Nouns: a *task* is one VM disk; a *resource* is a proxy or a repository with a limit of concurrent tasks; a *plan* is the
assignment of a job's tasks and the slots that the job may use at the same time.
"""

from engine.scheduler.plan import Assignment, NoResource, Plan, Resource, Task, plan

__all__ = ["Assignment", "NoResource", "Plan", "Resource", "Task", "plan"]
