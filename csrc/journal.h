/*
 * The event journal: memory shared between the service and the keeper.
 *
 * The kernel's read(2) writes fanotify events straight into free slots, so an
 * event that left the kernel's queue is on record before any code of ours runs.
 * A slot is taken while the event_len of its record is not 0; it is cleared
 * after the answer was written and before the event's descriptor is closed.
 *
 *   offset 0     struct nf_journal_header, 64 bytes
 *   events_off   nslots records of 48 bytes: fanotify_event_metadata (24) and
 *                fanotify_event_info_range (24)
 *   meta_off     nslots records of 16 bytes: struct nf_journal_meta
 *
 * Read by another process, maybe of another version (nydus_fscache/keeper.py):
 * a change of layout is a new NF_JOURNAL_VERSION.
 */
#ifndef NF_JOURNAL_H
#define NF_JOURNAL_H

#include "base.h"

#define NF_JOURNAL_MAGIC 0x4c4e524a5346594eULL	/* "NYFSJRNL" */
#define NF_JOURNAL_VERSION 1
#define NF_EVENT_SIZE 48

struct nf_journal_header {
	uint64_t magic;
	uint32_t version;
	uint32_t nslots;
	uint64_t events_off;
	uint64_t meta_off;
	uint8_t reserved[32];
};

struct nf_journal_meta {
	uint64_t t_ns;		/* CLOCK_BOOTTIME when it was read */
	uint32_t object;	/* 0: read but not yet looked up */
	uint32_t reserved;
};

struct nf_journal {
	struct nf_journal_header *header;
	uint8_t *events;
	struct nf_journal_meta *meta;
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

#endif
