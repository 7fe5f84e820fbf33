"""The people, conversations and notices of the sample account."""

from __future__ import annotations

from dataclasses import dataclass

from .compose import Person

ALICE = Person("Alice Ng", "alice@example.org")

PEOPLE = {
    "bob": Person("Bob Okafor", "bob.okafor@example.net"),
    "chloe": Person("Chloé Dubois", "chloe@ete-architectes.example"),
    "daniel": Person("Daniel Weiß", "d.weiss@nordwind.example"),
    "emma": Person("Emma Lindqvist", "emma@example.org"),
    "farid": Person("Farid Haddad", "farid.haddad@example.net"),
    "mum": Person("Mei Ng", "mei.ng@example.com"),
    "jonas": Person("Jonas Ng", "jonas@example.com"),
    "priya": Person("Priya Raman", "priya@lighthouse.example"),
    "sven": Person("Søren Holm", "soren@nordwind.example"),
    "yuki": Person("田中 由紀", "yuki.tanaka@example.jp"),
    "olga": Person("Ольга Петрова", "olga@example.ru"),
}


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation: its subject, its folder and its messages; "alice" owns the account."""

    subject: str  # {} becomes one of `topics`, another one each time
    folder: str
    topics: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    label: str | None = None  # a second folder


TALKS = (
    Talk(
        "Quarterly report {}",
        "Work/Projects/Lighthouse",
        ("Q1", "Q2", "Q3", "Q4"),
        (
            ("priya", "Hi Alice,\n\nthe draft for {} is on the share. Could you check page 4?\n"),
            ("alice", "Done. The totals in table 2 do not add up yet, the rest is fine.\n"),
            ("priya", "Right, one row was counted twice. Fixed, thank you!\n"),
        ),
    ),
    Talk(
        "Offer for the {}",
        "Work/Clients/Nordwind",
        ("harbour office", "warehouse", "reception", "test bench"),
        (
            ("daniel", "Dear Alice,\n\nplease find our offer for the {} attached.\n\nDaniel\n"),
            ("alice", "Thank you, Daniel. Can you hold the price until the end of the month?\n"),
            ("sven", "We can. Søren from sales will send you the paperwork.\n"),
            ("alice", "Perfect, then we have a deal.\n"),
        ),
        "Archive",
    ),
    Talk(
        "Plans for the {}",
        "Work/Clients/Été",
        ("façade", "entrée", "café on the roof", "crèche"),
        (
            ("chloe", "Bonjour Alice,\n\nvoilà les plans pour {} : le niveau 2 a changé.\n"),
            ("alice", "Merci Chloé! The stairs look much better now.\n"),
            ("chloe", "Parfait. À jeudi, alors ?\n"),
            ("alice", "À jeudi.\n"),
        ),
    ),
    Talk(
        "Lunch on {}?",
        "Inbox",
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"),
        (
            ("bob", "There is a new noodle place round the corner. {}, half past twelve?\n"),
            ("alice", "I'm in.\n"),
        ),
    ),
    Talk(
        "Re-reading {}",
        "Friends",
        ("Middlemarch", "Solaris", "The Dispossessed", "Pippi Långstrump"),
        (
            ("emma", "I have started on {} again. It is better than I remembered.\n"),
            ("alice", "Lend it to me when you are through?\n"),
            ("emma", "You can have it on Sunday.\n"),
        ),
    ),
    Talk(
        "Sunday at {}",
        "Family",
        ("home", "the lake", "grandma's", "Jonas's new flat"),
        (
            ("mum", "We meet at {} at three. Bring the cake tin, please.\n"),
            ("jonas", "I'll bring coffee.\n"),
            ("alice", "And I bring the cake in it!\n"),
        ),
    ),
    Talk(
        "Tickets to {}",
        "Travel",
        ("Lisbon", "Kyōto", "Tromsø", "Kraków", "Zürich"),
        (
            ("farid", "The night train to {} still has two berths. Shall I take them?\n"),
            ("alice", "Yes please, I'll pay you back tonight.\n"),
            ("farid", "Booked. The PDF is attached.\n"),
        ),
        "Family",
    ),
    Talk(
        "{}の写真",
        "Friends",
        ("京都", "桜", "花火", "富士山"),
        (
            ("yuki", "アリスさん、\n\n{}の写真を送ります。またお会いしましょう。\n\n由紀\n"),
            ("alice", "Thank you, Yuki! They are beautiful. 🌸\n"),
        ),
    ),
    Talk(
        "Рецепт: {}",
        "Friends",
        ("борщ", "пельмени", "блины", "медовик"),
        (
            ("olga", "Дорогая Алиса,\n\nвот рецепт: {}. Приятного аппетита!\n\nОльга\n"),
            ("alice", "Спасибо! I will try it on Saturday.\n"),
        ),
    ),
)

LISTS = (
    (
        "Lists/trio-dev",
        Person("Trio developers", "trio-dev@lists.example"),
        (
            "Cancel scopes and shielding, once more",
            "[ANN] A new release is out",
            "What should a nursery do with two errors?",
            "Memory channels: when to clone",
        ),
    ),
    (
        "Lists/Fahrrad München",
        Person("Fahrrad München", "fahrrad@lists.example"),
        (
            "Tour am Sonntag",
            "Werkstattabend fällt aus",
            "Suche: Laufräder 28″",
            "Grüße vom Brenner",
        ),
    ),
)

RECEIPTS = (
    (Person("City Library", "noreply@library.example"), "Your loan is due in three days"),
    (Person("Stadtwerke", "rechnung@stadtwerke.example"), "Ihre Rechnung über 48,20 €"),
    (Person("Rail Europe", "tickets@rail.example"), "Your ticket ✅"),
    (Person("Greengrocer", "orders@greens.example"), "Order confirmed: 2 kg of plums"),
)
