"""Notes of smaller batches reach the call that they belong to."""

import threading

from her2batch.models.execution.smaller_batches import collect_smaller_batches, note_smaller_batch


def test_a_note_is_collected_once() -> None:
    with collect_smaller_batches() as notes:
        for size in (64, 64, 32):
            note_smaller_batch(size, 128, "cuda")
    note_smaller_batch(16, 128, "cuda")
    assert [note.split(":")[0] for note in notes] == [
        f"a network got {size} tiles at once in place of 128" for size in (64, 32)
    ]


def test_threads_do_not_share_notes() -> None:
    def other() -> None:
        note_smaller_batch(1, 128, "cuda")

    with collect_smaller_batches() as notes:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert notes == []
