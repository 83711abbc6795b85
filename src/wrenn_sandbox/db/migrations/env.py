"""Alembic's entry: runs the revisions on the connection that ``db.engine`` hands over."""

from alembic import context

from wrenn_sandbox.db.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
