"""Threads of BLAS that several threads of Python give up at once."""

import threading

from threadpoolctl import threadpool_limits

from smscale.kernels.threads import Shared, blas_threads, in_threads, one_blas_thread


def test_blas_has_one_thread_until_the_last_lets_go() -> None:
    """The first to come leaves first: the other still has one thread, and after it all are back."""
    inside, leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with one_blas_thread():
            inside.set()
            leave.wait(10)
            seen.append(blas_threads())

    with threadpool_limits(2, user_api="blas"):
        second = threading.Thread(target=other)
        with one_blas_thread():
            second.start()
            assert inside.wait(10)
        assert blas_threads() == 1
        leave.set()
        second.join()
        assert seen == [1]
        assert blas_threads() == 2


def test_work_that_uses_blas_has_one_thread_of_it_however_many_parts_there_are() -> None:
    with threadpool_limits(2, user_api="blas"):
        for parts in (1, 3):
            seen: list[int] = []
            in_threads(lambda part, seen=seen: seen.append(blas_threads()), range(parts), uses_blas=True)
            assert seen == [1] * parts
        in_threads(lambda part: seen.append(blas_threads()), [0])
        assert seen[-1] == 2


def test_a_state_is_set_once_and_put_back_once() -> None:
    told: list[str] = []
    state = Shared(lambda undo: (told.append("set"), undo.callback(told.append, "back"))[0])
    with state.held(), state.held():
        assert told == ["set"]
    assert told == ["set", "back"]
