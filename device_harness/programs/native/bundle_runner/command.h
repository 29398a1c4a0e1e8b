/* A command being run: its JSON, the state that commands share, and what they have in common. */
#ifndef COMMAND_H
#define COMMAND_H

#include "json.h"
#include "sampling.h"
#include "session.h"

enum { MOST_IDS = 1 << 20 };

typedef struct {
    Session session;
    Random workload;  /* the tokens of "random", which begin again with every bundle that is opened */
    bool reads_input; /* commands come from standard input */
    bool is_lost;     /* where the next command begins is not known */
    double started;   /* when the command began, by `monotonic_s` */
} Runner;

typedef struct {
    JsonSource source;
    const JsonValue *value;
    const char *name;
} Command;

/* The tokens of a command, and the media that stand among them. */
typedef struct {
    int32_t *ids;
    size_t count;
    MediaUse uses[MOST_MEDIA];
    size_t use_count;
} Prompt;

double monotonic_s(void);

/* Whether the command has all keys of `wanted` and no others but those of `optional`. */
bool has_keys(const Command *command, const char *wanted, const char *optional);
/* A value of the command; NULL if it is absent. */
const JsonValue *member(const Command *command, const char *key);
/* Read a number if it is there; false if it is not one, or out of bounds. */
bool integer(const Command *command, const char *key, int64_t least, int64_t most, int64_t *found);
bool number(const Command *command, const char *key, double least, double most, double *found);
/* Read true or false if it is there; false if it is neither. */
bool boolean(const Command *command, const char *key, bool *found);
bool needs_session(const Runner *runner, const Command *command);
/* The tokens of `ids`, or of `random`, and the `media`. Free the ids, after an error too. */
bool read_prompt(Runner *runner, const Command *command, Prompt *prompt);

/* Begin the last answer, and end it: true, the result of the command. */
void begin_answer(const Command *command);
bool end_answer(const Runner *runner);
bool answer_position(Runner *runner, const Command *command);

/* The commands: each answers, or returns false with an error recorded. */
typedef bool RunCommand(Runner *runner, const Command *command);
RunCommand do_open, do_close, do_size, do_truncate, do_stats, do_profile;
RunCommand do_prefill, do_decode, do_generate;
RunCommand do_image, do_sound, do_forget;

#endif
