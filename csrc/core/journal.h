/*
 * The event journal: memory shared between the service and the keeper.
 *
 * The kernel's read(2) writes events straight into free slots, so an event that
 * left the kernel's queue is on record before any code of ours runs.
 * A fanotify slot is taken while the event_len of its record is not 0; it is cleared
 * after the answer was written and before the event's descriptor is closed.
 * A cachefiles record is taken while its len is not 0: an OPEN until copen, a READ
 * until READ_COMPLETE, a CLOSE until the object is forgotten.
 *
 *   offset 0     struct nf_journal_header, 64 bytes
 *   events_off   nslots records of 48 bytes: fanotify_event_metadata (24) and
 *                fanotify_event_info_range (24)
 *   meta_off     nslots records of 16 bytes: struct nf_journal_meta
 *   messages_off nslots of struct nf_message: what cachefiles has sent
 *   objects_off  nslots of struct nf_message: the OPENs of cachefiles objects whose
 *                descriptors the keeper has, answered or not
 *
 * Read by another process, maybe of another version (nydus_fscache/handover/fail_pending.py):
 * a change of layout is a new NF_JOURNAL_VERSION.
 */
#ifndef NF_JOURNAL_H
#define NF_JOURNAL_H

#include "base.h"

#define NF_JOURNAL_MAGIC 0x4c4e524a5346594eULL	/* "NYFSJRNL" */
#define NF_JOURNAL_VERSION 2
#define NF_EVENT_SIZE 48
#define NF_MESSAGE_SIZE 1024	/* CACHEFILES_MSG_MAX_SIZE */

struct nf_journal_header {
	uint64_t magic;
	uint32_t version;
	uint32_t nslots;
	uint64_t events_off;
	uint64_t meta_off;
	uint64_t messages_off;
	uint64_t objects_off;
	uint32_t messages_used;	/* records behind these were never touched, and take no memory */
	uint32_t objects_used;
	uint8_t reserved[8];
};

struct nf_journal_meta {
	uint64_t t_ns;		/* CLOCK_BOOTTIME when it was read */
	uint32_t object;	/* 0: read but not yet looked up */
	uint32_t reserved;
};

/* As the kernel sends it (reference kernel-transports 1.3). */
struct nf_message {
	uint32_t msg_id;
	uint32_t opcode;
	uint32_t len;
	uint32_t object_id;
	uint8_t body[NF_MESSAGE_SIZE - 16];
};

struct nf_journal {
	struct nf_journal_header *header;
	uint8_t *events;
	struct nf_journal_meta *meta;
	struct nf_message *messages;
	struct nf_message *objects;
	uint32_t nslots;
};

/* -EPROTO: not a journal of this version; -EINVAL: it does not fit its memory. */
int nf_journal_open(struct nf_journal *j, void *mem, size_t len);

static inline uint32_t *nf_journal_event_len(const struct nf_journal *j, uint32_t slot)
{
	return (uint32_t *)(j->events + (size_t)slot * NF_EVENT_SIZE);
}

static inline int nf_journal_taken(const struct nf_journal *j, uint32_t slot)
{
	return __atomic_load_n(nf_journal_event_len(j, slot), __ATOMIC_ACQUIRE) != 0;
}

static inline void nf_journal_clear(const struct nf_journal *j, uint32_t slot)
{
	j->meta[slot].object = 0;
	__atomic_store_n(nf_journal_event_len(j, slot), 0, __ATOMIC_RELEASE);
}

static inline void nf_message_clear(struct nf_message *m)
{
	__atomic_store_n(&m->len, 0, __ATOMIC_RELEASE);
}

#endif
