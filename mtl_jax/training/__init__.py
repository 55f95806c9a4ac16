"""One stage after another: plan, set-up, step, loop, and what finished stages leave."""
