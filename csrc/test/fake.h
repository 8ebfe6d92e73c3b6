/*
 * A transport that the test is the kernel of: questions and answers are messages on a socket
 * pair.  With it the whole core runs without root and without a kernel interface.
 *
 * A program tests one behaviour and ends with 0; CHECK ends it with 1; 77 says that it cannot run here.
 */
#ifndef NF_FAKE_H
#define NF_FAKE_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core_internal.h"

#define CHECK(what)                                                                     \
	do {                                                                            \
		if (!(what)) {                                                          \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
			exit(1);                                                        \
		}                                                                       \
	} while (0)

#define PATIENCE_MS 20000	/* for what must come */
#define SHORT_MS 100		/* for what must not */

/* What the fake kernel asks; a record of the journal. */
struct fake_ask {
	uint32_t taken;		/* 1 */
	uint32_t unique;
	uint32_t object;	/* 0: not to be found, as an inode that is not served */
	uint32_t pad;
	uint64_t off;
	uint64_t len;
};

struct fake_answer {
	uint32_t unique;
	int32_t err;
};

struct rig {
	struct nf_core *core;
	struct nf_transport *fake;
	int kernel;		/* the test's end */
	int ours;
	void *journal;
	size_t journal_len;
	uint32_t flags;
};

extern const struct nf_transport_ops fake_ops;

/* A core with the fake transport, not started. */
void rig_new(struct rig *r, uint32_t slots, uint32_t flags);
/* The service was killed: another core on the same journal and descriptors. */
void rig_reborn(struct rig *r);
void rig_free(struct rig *r);

/* An object of `size` bytes in an unlinked file; returns its page map, which is freed by free(3). */
uint8_t *rig_object(struct rig *r, uint32_t id, uint64_t size, bool present, int *fd);

void ask(struct rig *r, uint32_t unique, uint32_t object, uint64_t off, uint64_t len);
/* The next answer within timeout_ms; unique is 0 when there is none. */
struct fake_answer answer_within(struct rig *r, int timeout_ms);
/* The next event for Python; its type is 0 when there is none. */
struct nf_event event_within(struct rig *r, int timeout_ms);

#endif
