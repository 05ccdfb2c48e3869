//! The sentences of the routing task, exactly as the base model saw them in training.
//! Order matters: instances are drawn by position.

use super::routing::Intent;

/// Departments a customer can be sent to.
pub(super) const DEPARTMENTS: [&str; 8] = [
    "disputes",
    "fraud",
    "closures",
    "cards",
    "payments",
    "rewards",
    "technical",
    "general",
];

/// Departments where a human always takes over.
pub(super) const HUMAN_DEPARTMENTS: [&str; 3] = ["disputes", "fraud", "closures"];

/// What customers want, in drawing order.
pub(super) const INTENTS: [Intent; 13] = [
    Intent {
        department: "disputes",
        cores: &[
            "I want to dispute a charge of ${amt} from {merchant}.",
            "{merchant} charged me twice for the same order on {date}.",
            "The ${amt} payment to {merchant} is wrong, I only agreed to ${amt}.",
            "I was billed ${amt} by {merchant} after I cancelled.",
            "Please reverse the {merchant} transaction from {date}, the goods were never delivered.",
            "My statement shows ${amt} for {merchant} but the receipt says ${amt}.",
            "I would like to contest the ${amt} card transaction at {merchant}.",
            "{merchant} sent me a broken item and will not take back the ${amt} charge.",
        ],
    },
    Intent {
        department: "disputes",
        cores: &[
            "The refund of ${amt} from {merchant} has not arrived.",
            "{merchant} promised to return ${amt} on {date} and nothing came.",
            "I sent the goods back to {merchant} and still have no refund.",
            "Where is my refund of ${amt}?",
            "I am still waiting for {merchant} to credit ${amt} to my card.",
            "The merchant says the ${amt} was refunded on {date} but I cannot see it.",
        ],
    },
    Intent {
        department: "fraud",
        cores: &[
            "There is a charge of ${amt} at {merchant} that I never made.",
            "Someone used my card at {merchant} on {date}.",
            "I do not recognise the ${amt} transaction from {date}.",
            "My card details were stolen and {merchant} took ${amt}.",
            "I see three purchases in a country I have never been to.",
            "A stranger withdrew ${amt} from my account on {date}.",
            "An unknown person opened a card in my name.",
            "I did not authorise the ${amt} payment to {merchant}.",
        ],
    },
    Intent {
        department: "fraud",
        cores: &[
            "I got a message asking for my PIN and I answered it.",
            "Somebody called and said they were from the bank, and I gave them my code.",
            "I clicked a link in a text about my card on {date} and typed my password.",
            "A caller asked me to move ${amt} to a safe account.",
            "I received a suspicious email that looks like yours.",
            "Is the text message about a ${amt} payment a scam?",
        ],
    },
    Intent {
        department: "closures",
        cores: &[
            "I want to close my account.",
            "Please cancel my credit card for good.",
            "How do I close the account ending in {last4}?",
            "I am moving to another bank, shut my account down.",
            "Please terminate my contract as of {date}.",
            "I no longer need the card ending in {last4}, please close it.",
            "Close everything I have with you.",
        ],
    },
    Intent {
        department: "cards",
        cores: &[
            "I lost my card on {date}.",
            "My card is gone, please send a new one.",
            "I left my card at {merchant} and need a replacement.",
            "The card ending in {last4} is damaged and does not work in shops.",
            "My new card has not arrived yet.",
            "Please block the card ending in {last4}, I cannot find it.",
            "I need a second card for my partner.",
            "The chip on my card is broken.",
        ],
    },
    Intent {
        department: "cards",
        cores: &[
            "Can you raise my limit to ${amt}?",
            "I would like a higher credit limit.",
            "My limit of ${amt} is too low for a trip on {date}.",
            "Please increase the spending limit on the card ending in {last4}.",
            "What do I need for a limit of ${amt}?",
            "Could I get ${amt} more credit on my card?",
        ],
    },
    Intent {
        department: "payments",
        cores: &[
            "When is my next payment due?",
            "What is the minimum payment this month?",
            "Can I move my due date to {date}?",
            "How do I pay my bill of ${amt}?",
            "Is the payment of ${amt} due on {date}?",
            "I want to set up automatic payments.",
            "Please tell me the due date for the card ending in {last4}.",
        ],
    },
    Intent {
        department: "payments",
        cores: &[
            "My payment of ${amt} on {date} did not go through.",
            "I paid ${amt} on {date} but it is not booked.",
            "The transfer of ${amt} came back.",
            "Why was I charged a late fee of ${amt}?",
            "My automatic payment failed on {date}.",
            "I sent ${amt} to the wrong account number of yours.",
        ],
    },
    Intent {
        department: "rewards",
        cores: &[
            "How many points do I have?",
            "My points from {merchant} are missing.",
            "When do my rewards expire?",
            "I want to turn {points} points into cash.",
            "Do purchases at {merchant} earn double points?",
            "The welcome bonus of {points} points was not added.",
            "How do I book a flight with my rewards?",
        ],
    },
    Intent {
        department: "technical",
        cores: &[
            "I cannot log in to the app.",
            "The app says my password is wrong.",
            "The website crashes when I open my statement.",
            "I do not receive the login code on my phone.",
            "The app has been down since {date}.",
            "How do I reset my password?",
            "My new phone is not accepted by the app.",
        ],
    },
    Intent {
        department: "general",
        cores: &[
            "I moved and need to change my address.",
            "Please update my phone number.",
            "My name changed on {date}, what do you need?",
            "What are your opening hours on {date}?",
            "I need a letter that confirms my account.",
            "Please send my statements by email.",
        ],
    },
    Intent {
        department: "general",
        cores: &[
            "What is my balance?",
            "How much money is in my account?",
            "Is my balance above ${amt}?",
            "How much credit do I have left?",
            "What was my balance on {date}?",
            "Please tell me the interest rate on my account.",
        ],
    },
];

/// How a message begins.
pub(super) const OPENERS: [&str; 8] = [
    "",
    "",
    "",
    "Hi, ",
    "Hello, this is {name}. ",
    "{name} here. ",
    "Good morning. ",
    "Dear team, ",
];

/// Endings of a calm message.
pub(super) const NEUTRAL: [&str; 6] = [
    "",
    "",
    "",
    " Thanks.",
    " Thank you for your help.",
    " Please let me know.",
];

/// Endings of an angry message: a human takes over.
pub(super) const ANGRY: [&str; 6] = [
    " This is unacceptable!",
    " I am furious.",
    " Worst bank ever!",
    " I have had enough of this!",
    " This is the third time I write and nobody helps!",
    " You people are useless.",
];

/// Endings that ask for a person: a human takes over.
pub(super) const PERSON: [&str; 6] = [
    " I want to talk to a person.",
    " Please have someone call me.",
    " No bots please, a real human.",
    " Can I speak to an agent?",
    " Connect me with your staff.",
    " I need a human to look at this.",
];

/// Names of customers.
pub(super) const NAMES: [&str; 16] = [
    "Maria Chen",
    "Tom Becker",
    "Aisha Khan",
    "Lars Holm",
    "Priya Nair",
    "John Smith",
    "Elena Petrova",
    "Omar Haddad",
    "Sofia Rossi",
    "Ken Tanaka",
    "Grace Mbeki",
    "Lucas Silva",
    "Nora Quinn",
    "Ivan Novak",
    "Chloe Martin",
    "Ben Cohen",
];

/// Names of merchants.
pub(super) const MERCHANTS: [&str; 16] = [
    "Acme Store",
    "Blue Cafe",
    "City Taxi",
    "Delta Air",
    "Easy Gym",
    "Fresh Foods",
    "Globe Hotel",
    "Home Depot 24",
    "Iris Optics",
    "Jet Fuel",
    "Kite Media",
    "Luna Shoes",
    "Metro Books",
    "Nova Games",
    "Orbit Phones",
    "Pixel Shop",
];

/// Months, for dates.
pub(super) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
