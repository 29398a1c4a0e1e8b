"""Which tests are run without Linux, and which of them are about Linux itself."""

RUN = (
    "tests/toolkit/base",
    "tests/toolkit/bundle",
    "tests/toolkit/runtime",
    "tests/converters/huggingface",
    "tests/device_harness/adb/test_wire.py",
    "tests/device_harness/push/test_source.py",
    "tests/gemma_edge/test_outputs.py",
)
MARKS = "not (slow or full or gpu or reference or lm)"
_OUTPUTS = "tests/gemma_edge/test_outputs.py::test_"
LINUX_ONLY = (
    # They read /proc themselves, or drop pages by posix_fadvise.
    "tests/toolkit/base/test_procfs.py::test_this_process_reads_as_what_it_is",
    "tests/toolkit/bundle/test_ple_shards.py::test_rows_read_do_not_stay_mapped_nor_do_their_neighbours",
    "tests/toolkit/runtime/backends/test_backends.py::test_a_bundle_runs_on_a_backend_that_was_added",
    "tests/toolkit/runtime/test_towers.py::test_text_reads_no_page_of_the_towers",
    "tests/toolkit/runtime/test_towers.py::test_an_image_reads_the_pages_of_vision_and_none_of_audio",
    "tests/toolkit/runtime/test_towers.py::test_a_tower_is_gone_when_its_work_is_done",
    "tests/toolkit/runtime/test_towers.py::test_a_tower_that_fails_is_gone_too",
    # Direct reads.
    "tests/converters/huggingface/test_safetensors.py::test_a_file_system_without_direct_reads_reads_as_ever",
    # The emulated device, and measuring this computer.
    f"{_OUTPUTS}no_verb_writes_to_a_device_a_fifo_or_a_socket[emulator]",
    f"{_OUTPUTS}a_place_that_cannot_be_written_is_one_error[emulator]",
    f"{_OUTPUTS}a_file_is_never_replaced_by_a_directory_nor_a_directory_by_a_file[emulator]",
    f"{_OUTPUTS}what_is_not_of_the_written_kind_is_kept_without_force[emulator]",
    f"{_OUTPUTS}results_replace_a_strangers_file_with_force_and_are_appended_to_their_own",
)
