/* The commands about tokens: prefill, decode, generate. */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "line.h"

static const char INTERRUPTED[] = "interrupted";

static void begin_steps_answer(const Runner *runner, const Command *command, bool was_stopped) {
    begin_answer(command);
    line_integer("position", runner->session.position);
    if (was_stopped) line_string("ending", INTERRUPTED);
}

bool do_prefill(Runner *runner, const Command *command) {
    Prompt prompt = {0};
    bool was_stopped = false;
    bool is_done = has_keys(command, "do", "ids random media") && needs_session(runner, command) &&
                   read_prompt(runner, command, &prompt) &&
                   session_prefill(&runner->session, prompt.ids, prompt.count, prompt.uses, prompt.use_count,
                                   &was_stopped);
    free(prompt.ids);
    if (!is_done) return false;
    begin_steps_answer(runner, command, was_stopped);
    return end_answer(runner);
}

static bool decode_all(Runner *runner, Prompt *prompt, int64_t *token, bool *was_stopped) {
    Session *session = &runner->session;
    if (!session_takes(session, prompt->ids, prompt->count)) return false;
    ple_prefetch(&session->ple, prompt->ids, prompt->count);
    for (size_t i = 0; i < prompt->count && !*was_stopped; i++) {
        const float *logits;
        if (!session_decode(session, prompt->ids[i], prompt->uses, prompt->use_count) || !(logits = session_logits(session)))
            return false;
        *token = most_likely(logits, (size_t)session->manifest.text.vocab_size);
        if (!session_end_logits(session) || *token < 0) return false;
        *was_stopped = i + 1 < prompt->count && session_is_stopped(session);
    }
    return true;
}

bool do_decode(Runner *runner, const Command *command) {
    Session *session = &runner->session;
    Prompt prompt = {0};
    int64_t token = -1;
    bool with_logits = false, was_stopped = false;
    bool is_done = has_keys(command, "do", "ids random media logits") && needs_session(runner, command) &&
                   boolean(command, "logits", &with_logits) &&
                   read_prompt(runner, command, &prompt) &&
                   (prompt.count || refuse(USAGE, NULL, "decode ids", "no tokens", "at least one")) &&
                   (prompt.count == 1 || !prompt.use_count ||
                    refuse(USAGE, NULL, "decode media", text("%zu tokens", prompt.count), "one, or none of media")) &&
                   decode_all(runner, &prompt, &token, &was_stopped);
    free(prompt.ids);
    if (!is_done) return false;
    const float *logits = session_logits(session);
    if (!logits) return false;
    size_t bytes = (size_t)session->manifest.text.vocab_size * sizeof *logits;
    begin_steps_answer(runner, command, was_stopped);
    line_integer("token", token);
    if (with_logits) line_integer("bytes", (int64_t)bytes);
    end_answer(runner);
    if (with_logits) write_bytes(logits, bytes);
    return session_end_logits(session);
}

typedef struct {
    int64_t limit, vocabulary, seed, drawn;
    int64_t *stop, *earlier;
    size_t stops, earlier_count;
    Sampling sampling;
    double repeat_penalty;
    bool *seen;       /* of each token below `vocabulary`, whether the conversation has it */
    float *penalised; /* its logits; these two only with a penalty */
} Generation;

static bool read_generation(const Runner *runner, const Command *command, Generation *generation) {
    const TextRecord *record = &runner->session.manifest.text;
    *generation = (Generation){.limit = record->context, .vocabulary = record->text_ids, .sampling = {0, 0, 1, 0}, .repeat_penalty = 1};
    return has_keys(command, "do", 
                    "ids random media limit stop vocabulary temperature top_k top_p min_p repeat_penalty earlier seed drawn") &&
           integer(command, "limit", 1, INT64_MAX, &generation->limit) &&
           integer(command, "vocabulary", 1, record->vocab_size, &generation->vocabulary) &&
           integer(command, "seed", 0, INT64_MAX, &generation->seed) &&
           integer(command, "drawn", 0, MOST_IDS << 4, &generation->drawn) &&
           integer(command, "top_k", 0, MOST_IDS << 4, &generation->sampling.top_k) &&
           number(command, "temperature", 0, DBL_MAX, &generation->sampling.temperature) &&
           number(command, "top_p", DBL_TRUE_MIN, 1, &generation->sampling.top_p) &&
           number(command, "min_p", 0, 1, &generation->sampling.min_p) &&
           number(command, "repeat_penalty", 0.01, 100, &generation->repeat_penalty) &&
           (!member(command, "earlier") ||
            json_integers(&command->source, command->value, "generate", "earlier", 0, MOST_IDS << 4, MOST_IDS, false,
                          &generation->earlier, &generation->earlier_count)) &&
           (!member(command, "stop") ||
            json_integers(&command->source, command->value, "generate", "stop", 0, record->vocab_size - 1, MOST_IDS, false,
                          &generation->stop, &generation->stops));
}

static bool is_stop(const TextRecord *record, const Generation *generation, int64_t token) {
    const int64_t *stops = generation->stop ? generation->stop : record->stop;
    size_t count = generation->stop ? generation->stops : record->stops;
    for (size_t i = 0; i < count; i++)
        if (stops[i] == token) return true;
    return false;
}

static void answer_token(int64_t token) {
    line_begin();
    line_integer("token", token);
    line_end();
}

typedef struct {
    int64_t tokens;
    double prefill_s, first_s, decode_s;
    const char *ending;
} Report;

static void mark(const Generation *generation, int64_t token) {
    if (token < generation->vocabulary) generation->seen[token] = true;
}

/* With a penalty, make room for the tokens that it applies to: those of the prompt and those before it. */
static bool begin_penalty(Generation *generation, const Prompt *prompt) {
    if (generation->repeat_penalty == 1) return true;
    generation->seen = allocate((size_t)generation->vocabulary, sizeof *generation->seen);
    generation->penalised = allocate((size_t)generation->vocabulary, sizeof *generation->penalised);
    if (!generation->seen || !generation->penalised) return false;
    memset(generation->seen, 0, (size_t)generation->vocabulary * sizeof *generation->seen);
    for (size_t i = 0; i < generation->earlier_count; i++) mark(generation, generation->earlier[i]);
    for (size_t i = 0; i < prompt->count; i++) mark(generation, prompt->ids[i]);
    return true;
}

static bool draw_next(Session *session, const Generation *generation, Random *random, int64_t *token) {
    const float *logits = session_logits(session);
    size_t count = (size_t)generation->vocabulary;
    if (!logits) return false;
    if (generation->seen) {
        penalise(logits, count, generation->seen, generation->repeat_penalty, generation->penalised);
        logits = generation->penalised;
    }
    *token = draw_token(logits, count, &generation->sampling, random);
    if (generation->seen && *token >= 0) mark(generation, *token);
    return session_end_logits(session) && *token >= 0;
}

/* Decode from the prompt's last token on until something ends the answer. */
static bool generate(Runner *runner, Prompt *prompt, const Generation *generation, Report *report) {
    Session *session = &runner->session;
    const TextRecord *record = &session->manifest.text;
    Random random;
    int64_t token = prompt->ids[prompt->count - 1];
    random_seed(&random, (uint64_t)generation->seed);
    for (int64_t i = 0; i < generation->drawn; i++) random_fraction(&random);
    for (size_t i = 0; i < prompt->use_count; i++) prompt->uses[i].at -= (int64_t)prompt->count - 1;
    while (!report->ending) {
        double before = monotonic_s();
        bool is_first = !report->tokens;
        size_t uses = is_first ? prompt->use_count : 0;
        if (!session_decode(session, (int32_t)token, prompt->uses, uses) ||
            !draw_next(session, generation, &random, &token))
            return false;
        double now = monotonic_s();
        if (is_first) report->first_s = now - runner->started;
        else report->decode_s += now - before;
        report->tokens++;
        answer_token(token);
        if (is_stop(record, generation, token)) report->ending = "stop token";
        else if (report->tokens == generation->limit) report->ending = "length";
        else if (session->position == record->context) report->ending = "context";
        else if (session_is_stopped(session)) report->ending = INTERRUPTED;
    }
    return true;
}

static bool answer_generate(Runner *runner, const Command *command, const Report *report) {
    begin_answer(command);
    line_integer("position", runner->session.position);
    line_string("ending", report->ending);
    line_integer("tokens", report->tokens);
    line_number("prefill_s", report->prefill_s);
    line_number("first_s", report->first_s);
    line_number("decode_s", report->decode_s);
    return end_answer(runner);
}

/* Only media with a row at one of the first `count` tokens. */
static size_t uses_before(const Session *session, const Prompt *prompt, size_t count, MediaUse uses[MOST_MEDIA]) {
    size_t found = 0;
    for (size_t i = 0; i < prompt->use_count; i++)
        if (prompt->uses[i].at < (int64_t)count && towers_medium(&session->towers, prompt->uses[i].key))
            uses[found++] = prompt->uses[i];
    return found;
}

/* Decode needs no media whose rows end before the last token. */
static void keep_last_uses(const Session *session, Prompt *prompt) {
    size_t kept = 0;
    for (size_t i = 0; i < prompt->use_count; i++) {
        const Medium *medium = towers_medium(&session->towers, prompt->uses[i].key);
        if (medium && prompt->uses[i].at + medium->rows >= (int64_t)prompt->count) prompt->uses[kept++] = prompt->uses[i];
    }
    prompt->use_count = kept;
}

static bool prefill_and_generate(Runner *runner, Prompt *prompt, Generation *generation, Report *report) {
    Session *session = &runner->session;
    MediaUse uses[MOST_MEDIA];
    if (!prompt->count) return refuse(USAGE, NULL, "generate ids", "no tokens", "at least one");
    if (!session_takes(session, prompt->ids, prompt->count)) return false;
    size_t count = prompt->count - 1;
    for (size_t i = 0; i < prompt->use_count; i++)
        if (!towers_medium(&session->towers, prompt->uses[i].key)) return false;
    size_t before = uses_before(session, prompt, count, uses);
    bool was_stopped;
    if (!session_prefill(session, prompt->ids, count, uses, before, &was_stopped)) return false;
    if (was_stopped) {
        report->ending = INTERRUPTED;
        return true;
    }
    report->prefill_s = monotonic_s() - runner->started;
    keep_last_uses(session, prompt);
    return begin_penalty(generation, prompt) && generate(runner, prompt, generation, report);
}

bool do_generate(Runner *runner, const Command *command) {
    Prompt prompt = {0};
    Generation generation = {0};
    Report report = {0};
    bool is_done = needs_session(runner, command) && read_generation(runner, command, &generation) &&
                   read_prompt(runner, command, &prompt) && prefill_and_generate(runner, &prompt, &generation, &report);
    free(prompt.ids);
    free(generation.stop);
    free(generation.earlier);
    free(generation.seen);
    free(generation.penalised);
    return is_done && answer_generate(runner, command, &report);
}
