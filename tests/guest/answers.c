/*
 * answers: asks what the recorded answers of real Xen 4.17 asked, in their order.
 *
 * Purpose: one line "NAME<TAB>answer" for each question of data/answers-xen-4.17.txt, and for the
 * neighbours of many; test_answers.py compares. The questions were worked out from their names and
 * answers, so a few may differ from those that were asked of Xen in what they do besides.
 * Blind spots: it judges nothing by itself; one domain only.
 *
 * Variants: hvm64
 * Options: --memory 128M --vcpus 2 --cmdline "hello world" --xen-version 4.17
 * Sources: answers/*.[ch]
 * Driven by: test_answers
 */
#include "answers/answers.h"

const char test_title[] = "Answers";

void test_main(void)
{
    ask_boot();
    ask_acpi();
    ask_cpuid();
    ask_machine();
    ask_hypercalls();
    ask_version();
    ask_hvm();
    ask_memory();
    ask_events();
    ask_grants();
    ask_vcpus();
    ask_refused();
    ask_time();
    ask_fifo();
    ask_apic();
    success();
}
