#include "crew.h"

#include <signal.h>
#include <time.h>

void nf_crew_init(struct nf_crew *c, uint32_t most)
{
	pthread_condattr_t monotonic;

	pthread_mutex_init(&c->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&c->came, &monotonic);
	pthread_condattr_destroy(&monotonic);
	pthread_cond_init(&c->left, NULL);
	c->most = most;
}

void nf_crew_destroy(struct nf_crew *c)
{
	pthread_mutex_lock(&c->lock);
	c->ending = true;
	pthread_cond_broadcast(&c->came);
	while (c->threads)
		pthread_cond_wait(&c->left, &c->lock);
	pthread_mutex_unlock(&c->lock);
	pthread_cond_destroy(&c->left);
	pthread_cond_destroy(&c->came);
	pthread_mutex_destroy(&c->lock);
}

/* With the lock. */
static void withdraw(struct nf_crew *c, struct nf_work *w)
{
	struct nf_work **p;

	if (!w->offered)
		return;
	for (p = &c->first; *p != w; p = &(*p)->next)
		;
	*p = w->next;
	w->offered = false;
}

/* With the lock.  False: there was none for long, or the crew ends. */
static bool await_work(struct nf_crew *c)
{
	struct timespec until;
	int rc = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += NF_CREW_IDLE_S;
	c->idle++;
	while (!c->first && !c->ending && rc == 0)
		rc = pthread_cond_timedwait(&c->came, &c->lock, &until);
	c->idle--;
	return c->first && !c->ending;
}

static void *helper(void *arg)
{
	struct nf_crew *c = arg;

	pthread_mutex_lock(&c->lock);
	while (await_work(c)) {
		struct nf_work *w = c->first;

		w->helpers++;
		pthread_mutex_unlock(&c->lock);
		w->help(w);
		pthread_mutex_lock(&c->lock);
		withdraw(c, w);		/* nothing is left of it to be taken */
		w->helpers--;
		pthread_cond_broadcast(&c->left);
	}
	c->threads--;
	pthread_cond_broadcast(&c->left);
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

/* With the lock.  Without a thread there is no help, which is no harm. */
static void hire(struct nf_crew *c)
{
	pthread_attr_t detached;
	sigset_t all, before;
	pthread_t thread;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &detached, helper, c) == 0)
		c->threads++;
	pthread_attr_destroy(&detached);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void nf_crew_share(struct nf_crew *c, struct nf_work *w, void (*mine)(struct nf_work *w))
{
	pthread_mutex_lock(&c->lock);
	w->next = c->first;
	w->offered = true;
	w->helpers = 0;
	c->first = w;
	if (!c->idle && c->threads < c->most)
		hire(c);
	pthread_cond_broadcast(&c->came);
	pthread_mutex_unlock(&c->lock);
	mine(w);
	pthread_mutex_lock(&c->lock);
	withdraw(c, w);
	while (w->helpers)
		pthread_cond_wait(&c->left, &c->lock);
	pthread_mutex_unlock(&c->lock);
}
